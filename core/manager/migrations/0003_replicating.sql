-- A list of replicas asks of each instance whether its share replicates: answered by this index alone, without the share.
CREATE INDEX shares_replicating ON shares (id) WHERE replicates = 1;
