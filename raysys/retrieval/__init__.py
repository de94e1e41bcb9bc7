"""Candidates: co-visitation, popularity, words, vectors, and how they merge."""
