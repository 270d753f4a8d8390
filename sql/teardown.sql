-- Removes what setup made: the slot, the publication, the function `unstale.emit`, and the replica identity indexes
-- with our name.
-- A table that setup gave REPLICA IDENTITY FULL keeps it: whether that was there before, nobody knows.
-- The outbox is removed before, by sql/outbox_teardown.sql.
-- Reads the settings unstale.slot, unstale.publication and unstale.emit: 'keep' if somebody else's outbox needs it.
do $$
declare
  slot name := current_setting('unstale.slot');
  publication name := current_setting('unstale.publication');
  identity record;
begin
  perform pg_drop_replication_slot(slot_name) from pg_replication_slots
    where slot_name = slot and database = current_database();
  if exists (select from pg_publication where pubname = publication) then
    execute format('drop publication %I', publication);
  end if;
  if current_setting('unstale.emit', true) is distinct from 'keep' then
    drop function if exists unstale.emit(text, jsonb);
  end if;
  -- The schema goes with the last of what is in it.
  if to_regnamespace('unstale') is not null
     and not exists (select from pg_depend where refclassid = 'pg_namespace'::regclass
                       and refobjid = to_regnamespace('unstale') and deptype = 'n') then
    drop schema unstale;
  end if;
  for identity in
    select i.indexrelid::regclass as index, i.indrelid::regclass as relation, i.indisreplident as in_use
      from pg_index i join pg_class c on c.oid = i.indexrelid
     where c.relname ~ '_unstale_[0-9a-f]{8}$' and i.indisunique
  loop
    if identity.in_use then
      execute format('alter table %s replica identity default', identity.relation);
    end if;
    execute format('drop index %s', identity.index);
  end loop;
end
$$;
