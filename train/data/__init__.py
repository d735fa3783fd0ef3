"""What is trained on: splits, disguised or not, and the batches of them."""
