-- Requests that agents handed out, and what the members of a request share.
ALTER TABLE aos_data.request ADD COLUMN "parent_id" uuid;
ALTER TABLE aos_data.request ADD COLUMN "depth" smallint;
CREATE INDEX ON aos_data.request ("parent_id", "requested_at") WHERE "parent_id" IS NOT NULL;

CREATE TABLE aos_data.context (
    "requested_at" timestamptz NOT NULL,
    "request_id" uuid NOT NULL,
    "round" smallint NOT NULL,
    "context_version" bigint NOT NULL,
    "tenant" text,
    "domain" text,
    "home" integer,
    "step" smallint,
    "attempt" smallint,
    "agent" text,
    "id" text,
    "context" text,
    PRIMARY KEY ("requested_at", "request_id", "round", "context_version")
);
SELECT create_hypertable('aos_data.context', by_range('requested_at', INTERVAL '6 hours'), create_default_indexes => false);
INSERT INTO aos_data.kept (table_name) VALUES ('context');
