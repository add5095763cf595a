"""How fast is one processor: rows in, decoded, validated, sorted, encoded, out, beside other ways to do it."""
