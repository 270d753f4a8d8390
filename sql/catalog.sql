-- Every ordinary and partitioned table outside the system schemas: what `unstale` checks rules against.
select n.nspname as schema,
       c.relname as name,
       c.relkind = 'p' as partitioned,
       c.relpersistence <> 'p' as unlogged,
       c.relreplident as identity,
       array(select a.attname::text from pg_attribute a
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
              order by a.attnum) as columns,
       array(select a.attnotnull from pg_attribute a
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
              order by a.attnum) as not_null,
       (select array_agg(a.attname::text order by a.attnum)
          from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1])
         where i.indrelid = c.oid
           and case c.relreplident when 'i' then i.indisreplident else i.indisprimary end) as identity_columns,
       rn.nspname as root_schema,
       rc.relname as root_name
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  left join pg_class rc on c.relispartition and rc.oid = pg_partition_root(c.oid)
  left join pg_namespace rn on rn.oid = rc.relnamespace
 where c.relkind in ('r', 'p')
   and n.nspname not in ('pg_catalog', 'information_schema')
   and n.nspname !~ '^pg_toast|^pg_temp'
 order by 1, 2;
