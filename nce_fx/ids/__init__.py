"""Channels as ids: what they are, the tensors that carry them, and the words in which rules speak of them."""
