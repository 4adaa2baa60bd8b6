"""The model servers' side: a pool picks a replica, a kind prepares the call, a transport sends it.

This package knows URLs, replicas and bytes. It knows no key, no limit, no dialect and no web
framework, and never imports `gateway`.
"""
