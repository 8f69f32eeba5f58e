"""What frozen models said about the pairs: the score store and the job that fills it."""
