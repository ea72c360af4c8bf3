-- Placement asks for the GiB promised on each pool with every request, so they are kept rather than summed up: `gib` is
-- the sum of the sizes of the shares of all instances on `host`. The triggers use no ON CONFLICT of their own, for
-- SQLite would put that of the statement which fired them in its place.

CREATE TABLE promised (
    host TEXT PRIMARY KEY NOT NULL,
    gib  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO promised (host, gib)
SELECT i.host, COALESCE(SUM(s.size_gb), 0) FROM instances i LEFT JOIN shares s ON s.id = i.share_id
WHERE i.host IS NOT NULL GROUP BY i.host;

CREATE TRIGGER instance_placed AFTER INSERT ON instances WHEN new.host IS NOT NULL
BEGIN
    INSERT INTO promised (host, gib)
    SELECT new.host, 0 WHERE NOT EXISTS (SELECT 1 FROM promised WHERE host = new.host);
    UPDATE promised SET gib = gib + COALESCE((SELECT size_gb FROM shares WHERE id = new.share_id), 0)
    WHERE host = new.host;
END;

CREATE TRIGGER instance_gone AFTER DELETE ON instances WHEN old.host IS NOT NULL
BEGIN
    UPDATE promised SET gib = gib - COALESCE((SELECT size_gb FROM shares WHERE id = old.share_id), 0)
    WHERE host = old.host;
END;

CREATE TRIGGER instance_moved AFTER UPDATE OF host, share_id ON instances
WHEN new.host IS NOT old.host OR new.share_id <> old.share_id
BEGIN
    UPDATE promised SET gib = gib - COALESCE((SELECT size_gb FROM shares WHERE id = old.share_id), 0)
    WHERE host = old.host;
    INSERT INTO promised (host, gib)
    SELECT new.host, 0
    WHERE new.host IS NOT NULL AND NOT EXISTS (SELECT 1 FROM promised WHERE host = new.host);
    UPDATE promised SET gib = gib + COALESCE((SELECT size_gb FROM shares WHERE id = new.share_id), 0)
    WHERE host = new.host;
END;

CREATE TRIGGER share_made AFTER INSERT ON shares
BEGIN
    UPDATE promised SET gib = gib + new.size_gb
        * (SELECT COUNT(*) FROM instances i WHERE i.share_id = new.id AND i.host = promised.host)
    WHERE host IN (SELECT i.host FROM instances i WHERE i.share_id = new.id);
END;

CREATE TRIGGER share_gone AFTER DELETE ON shares
BEGIN
    UPDATE promised SET gib = gib - old.size_gb
        * (SELECT COUNT(*) FROM instances i WHERE i.share_id = old.id AND i.host = promised.host)
    WHERE host IN (SELECT i.host FROM instances i WHERE i.share_id = old.id);
END;

CREATE TRIGGER share_resized AFTER UPDATE OF size_gb ON shares WHEN new.size_gb <> old.size_gb
BEGIN
    UPDATE promised SET gib = gib + (new.size_gb - old.size_gb)
        * (SELECT COUNT(*) FROM instances i WHERE i.share_id = new.id AND i.host = promised.host)
    WHERE host IN (SELECT i.host FROM instances i WHERE i.share_id = new.id);
END;

-- Shares with an instance that follows: asked for at every look of the sync schedule. In order of shares, so that nothing
-- is sorted.
DROP INDEX instances_following;
CREATE INDEX instances_following ON instances (share_id, replica_state)
WHERE replica_state IN ('in_sync', 'out_of_sync', 'error');

-- In the order of lists, so that it is preferred to the index that only orders.
DROP INDEX instances_unfenced;
CREATE INDEX instances_unfenced ON instances (created_at, id) WHERE json_extract(doc, '$.unfenced') = 1;
