"""What people ask a running gateway over its admin port, one family of commands a file."""
