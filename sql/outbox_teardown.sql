-- Removes the outbox: the triggers of all tables and their functions, then the outbox's own tables
-- with all entries. Each table is locked (ACCESS EXCLUSIVE) briefly. lock_timeout is below
-- deadlock_timeout, so that this script fails in a deadlock and the application's transaction does
-- not.
do $$
declare
  ours oid := (select oid from pg_namespace where nspname = 'unstale');
  found record;
begin
  perform set_config('lock_timeout', '500ms', true);
  for found in
    select t.tgname as trigger, t.tgrelid::regclass as relation
      from pg_trigger t join pg_proc p on p.oid = t.tgfoid
     where p.pronamespace = ours and p.proname like 'capture\_%' and t.tgparentid = 0
     order by t.tgrelid, t.tgname
  loop
    execute format('drop trigger %I on %s', found.trigger, found.relation);
  end loop;
  for found in
    select p.oid::regprocedure as function from pg_proc p
     where p.pronamespace = ours
       and (p.proname like 'capture\_%' and p.pronargs = 0
            or p.proname in ('ring', 'take_over', 'confirm')
            -- One of an older version, for this mode only. The current one serves both.
            or p.proname = 'emit' and p.prosrc not like '%pg_logical_emit_message%')
  loop
    execute format('drop function %s', found.function);
  end loop;
  drop table if exists unstale.outbox, unstale.shape, unstale.consumer;
  drop sequence if exists unstale.bell, unstale.counted;
  -- The schema is dropped once it is empty.
  if ours is not null
     and not exists (select from pg_depend where refclassid = 'pg_namespace'::regclass and refobjid = ours and deptype = 'n') then
    drop schema unstale;
  end if;
end
$$;
