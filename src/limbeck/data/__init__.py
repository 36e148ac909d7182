"""From any pile of images to one canonical dataset: the sources, the decoder, the writer and the reader."""
