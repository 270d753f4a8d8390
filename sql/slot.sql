-- The replication slot. Create the publication first: a slot that is older cannot decode with it.
-- Parameter: the setting unstale.slot (a name). From PostgreSQL 17 on it is a failover slot.
do $$
declare
  wanted name := current_setting('unstale.slot');
  found pg_replication_slots;
begin
  select * into found from pg_replication_slots where slot_name = wanted;
  if found.slot_name is null then
    if current_setting('server_version_num')::int >= 170000 then
      execute format('select pg_create_logical_replication_slot(%L, %L, failover => true)', wanted, 'pgoutput');
    else
      perform pg_create_logical_replication_slot(wanted, 'pgoutput');
    end if;
  elsif found.plugin is distinct from 'pgoutput' or found.database is distinct from current_database() then
    raise exception 'the replication slot % belongs to database % and plugin %', wanted, found.database, found.plugin
      using hint = 'choose another name for source.slot';
  end if;
end
$$;
