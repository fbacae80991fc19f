"""A generated bilingual corpus in which every stage of training has its own figure on held-out questions."""
