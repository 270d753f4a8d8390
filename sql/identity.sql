-- What decides which replica identities tables can have without any write being refused. $1: the
-- OIDs of tables that hold rows.
with recursive above (leaf, relation) as (
  select c.oid, c.oid from pg_class c where c.oid = any ($1)
  -- What is published of a partitioned table is published of its partitions.
  union select a.leaf, i.inhparent
    from above a join pg_class c on c.oid = a.relation and c.relispartition join pg_inherits i on i.inhrelid = a.relation
), domains (oid, base, typmod) as (
  select oid, typbasetype, typtypmod from pg_type where typtype = 'd'
  union all select d.oid, t.typbasetype, case when d.typmod = -1 then t.typtypmod else d.typmod end
    from domains d join pg_type t on t.oid = d.base where t.typtype = 'd'
), columns as (
  select a.attrelid, a.attnum, a.attname::text as name, a.attnotnull, a.attgenerated, t.oid as type, t.typlen, t.typtype,
         t.typcategory, case when a.atttypmod = -1 then coalesce(d.typmod, -1) else a.atttypmod end as typmod
    from pg_attribute a
    left join domains d on d.oid = a.atttypid and not exists (select from pg_type u where u.oid = d.base and u.typtype = 'd')
    join pg_type t on t.oid = coalesce(d.base, a.atttypid)
   where a.attrelid = any ($1) and a.attnum > 0 and not a.attisdropped
), indexes as (
  select i.*, x.relname::text as name, m.amname,
         (select array_agg(c.name order by k.place)
            from unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) with ordinality k (attnum, place)
            join columns c on c.attrelid = i.indrelid and c.attnum = k.attnum) as key,
         (select bool_and(c.attnotnull and c.attgenerated = '') from columns c
           where c.attrelid = i.indrelid and c.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1])) as is_whole
    from pg_index i join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam
   where i.indrelid = any ($1)
), fitting as (
  -- The columns that an index can be built on, and whose values always fit into it: they have a
  -- limit, or an index has them already.
  select c.attrelid, c.name from columns c
   where c.attnotnull and c.attgenerated = ''
     and exists (select from pg_opclass o join pg_am m on m.oid = o.opcmethod and m.amname = 'btree'
                  where o.opcdefault
                    and (o.opcintype = c.type
                         or o.opcintype in (select casttarget from pg_cast where castsource = c.type and castmethod = 'b')
                         or o.opcintype = case when c.typtype = 'e' then 'anyenum'::regtype when c.typtype = 'r' then 'anyrange'::regtype
                                               when c.typtype = 'm' then 'anymultirange'::regtype
                                               when c.typcategory = 'A' then 'anyarray'::regtype end))
     and (c.typlen > 0
          or c.type in ('varchar'::regtype, 'bpchar'::regtype) and c.typmod between 5 and 104
          or c.type = 'numeric'::regtype and c.typmod >= 4
          or c.type in ('bit'::regtype, 'varbit'::regtype) and c.typmod between 1 and 3200
          or exists (select from indexes i where i.indrelid = c.attrelid and i.amname = 'btree' and i.indisvalid
                        and i.indpred is null and c.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1])))
), lists as (
  select a.leaf, p.pubname::text as publication,
         r.prattrs is not null as has_list,
         array(select t.attname::text from pg_attribute t
                where t.attrelid = r.prrelid and t.attnum = any (r.prattrs::int2[])) as listed,
         r.prqual is not null as has_filter,
         array(select distinct t.attname::text from pg_depend d
                 join pg_attribute t on t.attrelid = d.refobjid and t.attnum = d.refobjsubid
                where d.classid = 'pg_publication_rel'::regclass and d.objid = r.oid
                  and d.refclassid = 'pg_class'::regclass and d.refobjid = r.prrelid and d.refobjsubid > 0) as used
    from above a join pg_publication_rel r on r.prrelid = a.relation join pg_publication p on p.oid = r.prpubid
   where (r.prattrs is not null or r.prqual is not null) and (p.pubupdate or p.pubdelete)
)
select l.oid as id,
       array(select f.name from fitting f where f.attrelid = l.oid) as fitting,
       array(select i.name from indexes i where i.indrelid = l.oid and not i.indisvalid) as unfinished,
       (select json_agg(json_build_object('name', i.name, 'columns', i.key) order by cardinality(i.key), i.name)::text
          from indexes i
         where i.indrelid = l.oid and i.indisunique and i.indisvalid and i.indisready and i.indimmediate
           and i.indpred is null and i.indexprs is null and i.is_whole) as indexes,
       (select json_agg(json_build_object(
                 'publication', s.publication,
                 'columns', case when s.has_list then s.listed end,
                 'filter', case when s.has_filter then s.used else '{}' end) order by s.publication)::text
          from lists s where s.leaf = l.oid) as publications
  from pg_class l where l.oid = any ($1) and l.relkind = 'r';
