"""The store protocol and its implementations; one contract suite runs over all of them."""
