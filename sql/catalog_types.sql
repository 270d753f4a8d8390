-- A digest of the types that the columns of each table use and that are not built in, and of the
-- expressions of its virtual columns. What was changed and changed back has another xmin. $1: the
-- OIDs of the tables.
with recursive used (root, oid) as (
  select a.attrelid, a.atttypid from pg_attribute a
   where a.attrelid = any ($1) and a.attnum > 0 and not a.attisdropped and a.atttypid >= 16384
  union
  select u.root, n.oid
    from used u
    join pg_type t on t.oid = u.oid
    cross join lateral (
      select t.typbasetype where t.typtype = 'd'
      union all select t.typelem where t.typcategory = 'A'
      union all select f.atttypid from pg_attribute f
                 where t.typtype = 'c' and f.attrelid = t.typrelid and f.attnum > 0 and not f.attisdropped
    ) n (oid)
   where n.oid >= 16384
), parts as (
  select u.root, u.oid::text || ':' || coalesce(
           (select string_agg(e.enumlabel || ' ' || e.xmin, ',' order by e.oid) from pg_enum e where e.enumtypid = u.oid),
           (select string_agg(concat_ws(' ', f.attname, f.atttypid, f.xmin), ',' order by f.attnum) from pg_attribute f
             where f.attrelid = t.typrelid and t.typtype = 'c' and f.attnum > 0 and not f.attisdropped), '') as part
    from used u join pg_type t on t.oid = u.oid
  union all
  select a.attrelid, a.attname || '=' || pg_get_expr(d.adbin, d.adrelid)
    from pg_attribute a join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
   where a.attrelid = any ($1) and a.attgenerated = 'v' and not a.attisdropped
)
select root, md5(string_agg(part, ';' order by part)) from parts group by root;
