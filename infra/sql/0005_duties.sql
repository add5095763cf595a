-- What only a table's owner may do, as functions of the owner: the store asks for it and owns nothing.
-- Names in them are qualified, and pg_temp comes last: neither a caller's search_path nor his temporary tables decide.

CREATE FUNCTION aos_data.drop_before(hypertable text, older timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM aos_data.kept WHERE table_name = hypertable) THEN
        RAISE EXCEPTION 'aos_data.kept has no table %', hypertable;
    END IF;
    PERFORM public.drop_chunks(format('aos_data.%I', hypertable)::regclass, older_than => older);
END $$;

CREATE FUNCTION aos_data.chunks_of(hypertable text, length interval) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM aos_data.kept WHERE table_name = hypertable) THEN
        RAISE EXCEPTION 'aos_data.kept has no table %', hypertable;
    END IF;
    PERFORM public.set_chunk_time_interval(format('aos_data.%I', hypertable)::regclass, length);
END $$;

-- A table of aos_data or a chunk of one: what the owner of this function owns, and nothing else.
CREATE FUNCTION aos_data.analyze_one(relation regclass) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = relation AND pg_get_userbyid(c.relowner) = current_user
            AND n.nspname IN ('aos_data', '_timescaledb_internal')
    ) THEN
        RAISE EXCEPTION 'no table of aos_data: %', relation;
    END IF;
    EXECUTE format('ANALYZE (SKIP_LOCKED) %s', relation);
END $$;

REVOKE ALL ON FUNCTION aos_data.drop_before(text, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION aos_data.chunks_of(text, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION aos_data.analyze_one(regclass) FROM PUBLIC;
