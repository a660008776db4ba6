"""A sans-IO IKE engine: data in, one ordered list of actions out.

Nothing in this package opens a socket, reads a clock or draws a random number of its own: time and
randomness are arguments, so that any conversation can be replayed byte for byte.
"""
