"""What a record is: fields, records, wire, topics, errors, settings, JSON. Imports nothing of the other layers."""
