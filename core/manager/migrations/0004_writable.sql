-- Shares all of whose instances are active: looked at on schedule as those are that have a follower.
CREATE INDEX shares_writable ON shares (id) WHERE json_extract(doc, '$.replication') = 'writable';
