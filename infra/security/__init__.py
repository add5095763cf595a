"""Who may do what, on the local stack and on given servers: certificates, users, the plan of rights."""
