"""Translation of tensors, arrays, images and files by trained generators."""
