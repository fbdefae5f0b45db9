"""Small sisters of the paper's studies: a laptop's two cores, digits or a folder of images."""
