-- Every ordinary and partitioned table outside the system schemas; unstale checks rules against
-- these.
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
       array(select a.atttypid from pg_attribute a
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
              order by a.attnum) as type_oids,
       array(select format_type(a.atttypid, a.atttypmod) from pg_attribute a
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
              order by a.attnum) as types,
       (select array_agg(a.attname::text order by k.place)
          from pg_index i
          cross join unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) with ordinality k (attnum, place)
          join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
         where i.indrelid = c.oid and i.indisprimary) as primary_key,
       -- Unique indexes on plain columns without a predicate, as a JSON array of arrays of names.
       (select json_agg((select json_agg(a.attname order by k.place)
                           from unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) with ordinality k (attnum, place)
                           join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum)
                        order by i.indexrelid::regclass::text)::text
          from pg_index i join pg_class x on x.oid = i.indexrelid
         where i.indrelid = c.oid and i.indisunique and not i.indisprimary and i.indpred is null
           and i.indisvalid and 0 <> all (i.indkey::int2[]) and x.relname !~ '_unstale_[0-9a-f]{8}$') as unique_columns,
       (select json_agg(json_build_object(
                 'columns', (select json_agg(a.attname order by k.place)
                               from unnest(f.conkey) with ordinality k (attnum, place)
                               join pg_attribute a on a.attrelid = f.conrelid and a.attnum = k.attnum),
                 'table', json_build_object('schema', tn.nspname, 'table', t.relname),
                 'referenced', (select json_agg(a.attname order by k.place)
                                  from unnest(f.confkey) with ordinality k (attnum, place)
                                  join pg_attribute a on a.attrelid = f.confrelid and a.attnum = k.attnum))
               order by f.conname)::text
          from pg_constraint f
          join pg_class t on t.oid = f.confrelid
          join pg_namespace tn on tn.oid = t.relnamespace
         where f.conrelid = c.oid and f.contype = 'f' and f.conparentid = 0) as foreign_keys,
       (select array_agg(a.attname::text order by a.attnum)
          from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1])
         where i.indrelid = c.oid
           -- A deferrable key cannot be a replica identity.
           and i.indisvalid and i.indimmediate
           and case c.relreplident when 'i' then i.indisreplident else i.indisprimary end) as identity_columns,
       -- Its ancestors by inheritance, as a JSON array of [schema, name]. Queries of these read its
       -- rows too.
       (with recursive above as (
          select inhparent as id from pg_inherits where inhrelid = c.oid and not c.relispartition
          union select inhparent from pg_inherits join above on inhrelid = above.id)
        select json_agg(json_build_array(an.nspname, a.relname))::text
          from above join pg_class a on a.oid = above.id join pg_namespace an on an.oid = a.relnamespace) as inherits,
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
