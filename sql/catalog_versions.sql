-- The transactions that last wrote the catalog's rows about tables and about what carries their
-- changes. $1: the OIDs of the tables. $2: the publication, or NULL. `row` is the table's own row:
-- VACUUM and ANALYZE write that in place. `links` are the others.
select c.oid as id,
       c.xmin::text as row,
       array_to_string(
         array(select i.xmin::text from pg_inherits i where i.inhrelid = c.oid order by i.inhseqno)
         || array(select p.xmin::text from pg_publication p where p.pubname = $2)
         || array(select r.xmin::text from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
                   where r.prrelid = c.oid and p.pubname = $2)
         || array(select t.xmin::text from pg_trigger t join pg_proc f on f.oid = t.tgfoid
                    join pg_namespace n on n.oid = f.pronamespace
                   where t.tgrelid = c.oid and n.nspname = 'unstale' order by t.tgname), ' ') as links
  from unnest($1) m (oid)
  join pg_class c on c.oid = m.oid
