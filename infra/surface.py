def surface_sql() -> str:
    return "SELECT 1"
