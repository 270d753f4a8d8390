-- The columns and keys of tables. $1: their OIDs.
with recursive domains as (
  select oid, typbasetype as base from pg_type where typtype = 'd'
  union all select d.oid, t.typbasetype from domains d join pg_type t on t.oid = d.base where t.typtype = 'd'
), bases as materialized (
  select d.oid, d.base from domains d join pg_type t on t.oid = d.base where t.typtype <> 'd'
), columns as (
  select a.attrelid,
         array_agg(a.attname::text order by a.attnum) as names,
         array_agg(a.attnum order by a.attnum) as numbers,
         array_agg(a.attnotnull order by a.attnum) as not_null,
         array_agg(a.atttypid order by a.attnum) as types,
         array_agg(coalesce(b.base, a.atttypid) order by a.attnum) as base_types,
         array_agg(format_type(a.atttypid, a.atttypmod) order by a.attnum) as type_names,
         array_agg(a.attgenerated order by a.attnum) as generated
    from pg_attribute a left join bases b on b.oid = a.atttypid
   where a.attrelid = any ($1) and a.attnum > 0 and not a.attisdropped
   group by a.attrelid
), indexes as (
  select i.indrelid, i.indexrelid, i.indisprimary, x.relname,
         -- Plain columns without a predicate.
         i.indisunique and i.indpred is null and i.indisvalid and 0 <> all (i.indkey::int2[]) as is_plain,
         (select array_agg(a.attname::text order by k.place)
            from unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) with ordinality k (attnum, place)
            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum) as columns
    from pg_index i join pg_class x on x.oid = i.indexrelid
   where i.indrelid = any ($1) and (i.indisprimary or i.indisunique)
), keys as (
  select indrelid,
         (array_agg(to_json(columns)) filter (where indisprimary))[1]::text as primary_key,
         (json_agg(columns order by indexrelid::regclass::text)
            filter (where is_plain and not indisprimary and relname !~ '_unstale_[0-9a-f]{8}$'))::text as unique_columns
    from indexes group by indrelid
), foreign_keys as (
  select f.conrelid,
         json_agg(json_build_object(
           'columns', (select json_agg(a.attname order by k.place)
                         from unnest(f.conkey) with ordinality k (attnum, place)
                         join pg_attribute a on a.attrelid = f.conrelid and a.attnum = k.attnum),
           'table', json_build_object('schema', tn.nspname, 'table', t.relname),
           'referenced', (select json_agg(a.attname order by k.place)
                            from unnest(f.confkey) with ordinality k (attnum, place)
                            join pg_attribute a on a.attrelid = f.confrelid and a.attnum = k.attnum),
           'on_delete', f.confdeltype)
         order by f.conname)::text as list
    from pg_constraint f
    join pg_class t on t.oid = f.confrelid
    join pg_namespace tn on tn.oid = t.relnamespace
   where f.conrelid = any ($1) and f.contype = 'f' and f.conparentid = 0
   group by f.conrelid
)
select c.attrelid as id, c.names, c.numbers, c.not_null, c.types, c.base_types, c.type_names, c.generated::text[],
       k.primary_key, k.unique_columns, f.list as foreign_keys
  from columns c
  left join keys k on k.indrelid = c.attrelid
  left join foreign_keys f on f.conrelid = c.attrelid;
