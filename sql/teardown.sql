-- Removes what setup created: the slot, the publication, the function unstale.emit, and the indexes
-- that it made for replica identities. Tables with REPLICA IDENTITY FULL keep it: it is not
-- recorded whether setup set it. sql/outbox_teardown.sql removes the outbox first. Parameters: the
-- settings unstale.slot, unstale.publication and unstale.emit ('keep' if the outbox of another
-- daemon needs the function).
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
  -- The schema is dropped once it is empty.
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
