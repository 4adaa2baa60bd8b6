"""The callers' side: accept → authenticate → read → route → admit → send → relay → account.

`exchange.py` tells one request's life in that order. A module named with a verb is a step of it,
a noun is a thing the steps share, a folder holds alternatives.
"""
