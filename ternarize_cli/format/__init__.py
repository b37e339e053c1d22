"""What an artifact is: the scheme that it was made by, and the codecs in which codes lie in bytes."""
