"""The machine and its file system: memory, cores, disk, files written whole, the cache folder."""
