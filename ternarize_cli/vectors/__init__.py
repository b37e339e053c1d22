"""`encode`: from texts or images to vectors, in a stream, a file, or a folder of shards."""
