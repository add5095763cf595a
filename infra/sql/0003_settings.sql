-- Settings changed at run time: every row that was written to aos.settings, whether its change counts or not.
CREATE TABLE aos_data.setting (
    "name" text NOT NULL,
    "tenant" text NOT NULL,
    "value" text,
    "version" bigint NOT NULL,
    "change" uuid NOT NULL,
    "changed_at" timestamptz,
    "changed_by" text,
    "reason" text,
    "log_offset" bigint,
    PRIMARY KEY ("version", "change", "name", "tenant")
);
