-- Tables, each with what the log carries of it. $1: OIDs; each is returned with all of its
-- partitions and children. NULL: every ordinary and partitioned table outside the system schemas.
with recursive asked as (
  select c.oid from pg_class c where c.oid = any ($1) and c.relkind in ('r', 'p')
  union select i.inhrelid from pg_inherits i join asked on i.inhparent = asked.oid
), scope as materialized (
  select oid from asked
  union all
  select c.oid from pg_class c
   where $1 is null and c.relkind in ('r', 'p') and c.relnamespace in (
     select oid from pg_namespace
      where nspname not in ('pg_catalog', 'information_schema') and nspname !~ '^pg_toast|^pg_temp')
)
select c.oid as id,
       n.nspname::text as schema,
       c.relname::text as name,
       c.relkind = 'p' as partitioned,
       c.relispartition as partition,
       c.relpersistence <> 'p' as unlogged,
       c.relreplident as identity,
       c.relrowsecurity as row_security,
       c.relfilenode as file,
       array(select i.inhparent from pg_inherits i where i.inhrelid = c.oid order by i.inhseqno) as parents,
       (select array_agg(a.attname::text order by a.attnum)
          from pg_index i
          join pg_attribute a on a.attrelid = c.oid and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1])
         where i.indrelid = c.oid
           -- A deferrable key cannot be a replica identity.
           and i.indisvalid and i.indimmediate
           and case c.relreplident when 'i' then i.indisreplident when 'd' then i.indisprimary else false end
       ) as identity_columns
  from scope s
  cross join lateral (select * from pg_class where oid = s.oid offset 0) c
  join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p')
 order by 2, 3;
