-- How a decision was degraded; null where it was not, and for all that was written before.
ALTER TABLE aos_data.decision ADD COLUMN "rung" text;
ALTER TABLE aos_data.attempt ADD COLUMN "rung" text;
ALTER TABLE aos_data.result ADD COLUMN "rung" text;
