"""IKEv2 messages to and from octets (RFC 7296 section 3, RFC 7383).

Decoders take whatever came from the network and either return plain frozen data or raise one of the
``IkeError`` classes; nothing else escapes. Encoders take data of our own and raise ``LocalMisuse``
where it does not fit the field.
"""
