-- The role that Grafana reads with: it sees everything and changes nothing.
-- PostgreSQL's image runs this once, when the database is new. By hand: psql -U inferwatch -f reader.sql inferwatch
-- The password stands in compose.yaml and in the data source too; change all three.
CREATE ROLE grafana LOGIN PASSWORD 'grafana';
ALTER ROLE grafana SET default_transaction_read_only = on;
ALTER ROLE grafana SET statement_timeout = '30s';
GRANT USAGE ON SCHEMA public TO grafana;
-- An upgrade makes the views anew, so the right is given in advance, to whatever the daemon's role makes.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO grafana;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO grafana;
