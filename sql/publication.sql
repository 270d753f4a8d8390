-- Creates the publication, or changes it to publish exactly the tables of the rules.
-- Parameters: the settings unstale.publication (a name) and unstale.tables (a JSON array of
-- [schema, table]).
do $$
declare
  wanted_name name := current_setting('unstale.publication');
  wanted text[] := array(select format('%I.%I', t ->> 0, t ->> 1)
                           from json_array_elements(current_setting('unstale.tables')::json) t order by 1);
  found pg_publication;
  carried text[];
begin
  select * into found from pg_publication where pubname = wanted_name;
  if found.oid is null then
    execute format('create publication %I', wanted_name)
            || coalesce(' for table ' || nullif(array_to_string(wanted, ', '), ''), '');
    return;
  end if;
  if not (found.pubinsert and found.pubupdate and found.pubdelete and found.pubtruncate) then
    execute format('alter publication %I set (publish = %L)', wanted_name, 'insert, update, delete, truncate');
  end if;
  -- PostgreSQL does not publish a TRUNCATE of a partition through its root, so partitions publish
  -- under their own names.
  if found.pubviaroot then
    execute format('alter publication %I set (publish_via_partition_root = false)', wanted_name);
  end if;
  if found.puballtables then
    return;
  end if;
  -- Row filters and column lists hide changes, so a table that has one counts as not published.
  carried := array(select format('%I.%I', n.nspname, c.relname)
                     from pg_publication_rel r
                     join pg_class c on c.oid = r.prrelid
                     join pg_namespace n on n.oid = c.relnamespace
                    where r.prpubid = found.oid and r.prqual is null and r.prattrs is null
                    order by 1);
  if carried is distinct from wanted
     or (select count(*) from pg_publication_rel where prpubid = found.oid) <> cardinality(wanted) then
    if cardinality(wanted) > 0 then
      execute format('alter publication %I set table %s', wanted_name, array_to_string(wanted, ', '));
    else
      -- All rules are about events. Events are published without any table.
      execute (select format('alter publication %I drop table %s', wanted_name,
                             string_agg(format('%I.%I', n.nspname, c.relname), ', '))
                 from pg_publication_rel r join pg_class c on c.oid = r.prrelid
                 join pg_namespace n on n.oid = c.relnamespace where r.prpubid = found.oid);
    end if;
  end if;
end
$$;
