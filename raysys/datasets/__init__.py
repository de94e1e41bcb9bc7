"""Adapters: public data sets and generic files into the vocabulary of `schema`."""
