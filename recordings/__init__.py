"""What is trained on: downloads, rendering, inspection, corpus, split and crops, the Hub."""
