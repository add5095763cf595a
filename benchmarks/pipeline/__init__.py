"""How fast is the whole loop: requests in, results out, every decision in SQL, at which rate is it full, and where."""
