"""The reference pair: the recipe that trains a small target and its draft model from scratch."""
