-- The event triggers of unstale: they tell a running daemon in the same transaction that a table, a
-- materialized view, a type, a schema, a publication or a trigger was created, changed or dropped.
-- Creating event triggers needs a superuser, or what your provider allows instead. Without them the
-- daemon compares the catalog every two seconds.
-- They write nothing for temporary tables, and they never make a statement fail.
do $$
begin
  if to_regnamespace('unstale') is null then
    create schema unstale;
    comment on schema unstale is 'made by unstale';
  end if;
end
$$;

create or replace function unstale.notice_ddl() returns event_trigger
  language plpgsql volatile parallel unsafe security definer
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '500ms'
as $notice$
declare
  touched oid[];
  other boolean;
  notice text;
  orphan record;
begin
  if tg_event = 'table_rewrite' then
    touched := array[pg_event_trigger_table_rewrite_oid()];
    if exists (select from pg_class c where c.oid = any (touched) and c.relpersistence = 't') then
      return;
    end if;
  elsif tg_event = 'sql_drop' then
    select array_agg(d.objid) filter (where d.object_type in ('table', 'table column', 'materialized view')),
           bool_or(d.original and d.object_type not in ('table', 'table column', 'materialized view'))
      into touched, other
      from pg_event_trigger_dropped_objects() d
     where not d.is_temporary and d.schema_name is distinct from 'unstale'
       and d.object_type in ('table', 'table column', 'materialized view', 'type', 'schema', 'trigger', 'publication',
                             'publication relation', 'publication namespace');
    -- A dropped column takes an index with it. If that was the replica identity that unstale chose,
    -- PostgreSQL would refuse updates and deletes from now on.
    if exists (select from pg_event_trigger_dropped_objects() d
                where d.object_type = 'index' and d.object_name ~ '_unstale_[0-9a-f]{8}$') then
      for orphan in
        select c.oid::regclass as relation from pg_class c
         where c.relreplident = 'i'
           and not exists (select from pg_index i where i.indrelid = c.oid and i.indisreplident)
      loop
        begin
          execute format('alter table %s replica identity default', orphan.relation);
        exception when others then
          null;
        end;
      end loop;
    end if;
  else
    select array_agg(c.objid) filter (where c.object_type in ('table', 'table column', 'materialized view')),
           bool_or(c.object_type not in ('table', 'table column', 'materialized view'))
      into touched, other
      from pg_event_trigger_ddl_commands() c
     where c.schema_name is distinct from 'pg_temp' and c.schema_name is distinct from 'unstale'
       and c.object_type in ('table', 'table column', 'materialized view', 'type', 'domain', 'schema', 'trigger',
                             'publication', 'publication relation', 'publication namespace');
  end if;
  if touched is null and other is not true then
    return;
  end if;
  -- With the tables above them: partitioned tables and parents.
  with recursive tree as (
    select unnest(touched) as relation
    union select i.inhparent from tree join pg_inherits i on i.inhrelid = tree.relation)
  select array_agg(relation order by relation) into touched from tree;
  if cardinality(touched) > 1000 then
    touched := null;
    other := true;
  end if;
  notice := json_build_object('tag', tg_tag, 'relations', coalesce(touched::int8[], '{}'), 'other', coalesce(other, false));
  begin
    if current_setting('wal_level') = 'logical' then
      perform pg_logical_emit_message(true, 'unstale.ddl', convert_to(notice, 'UTF8'));
    end if;
  exception when others then
    null;
  end;
  begin
    -- This function runs as its owner, a superuser, and so would triggers of the outbox. So the
    -- outbox must belong to the same role or to a superuser.
    if exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_roles r on r.oid = c.relowner
                where n.nspname = 'unstale' and c.relname = 'outbox' and c.relkind = 'r'
                  and (r.rolsuper or r.rolname = current_user)) then
      insert into unstale.outbox (op, new) values ('c', array[notice]);
    end if;
  exception when others then
    null;
  end;
exception when others then
  null;
end
$notice$;

comment on function unstale.notice_ddl() is 'made by unstale';

revoke all on function unstale.notice_ddl() from public;

do $$
begin
  if not exists (select from pg_event_trigger where evtname = 'unstale_ddl') then
    create event trigger unstale_ddl on ddl_command_end
      when tag in ('ALTER DOMAIN', 'ALTER MATERIALIZED VIEW', 'ALTER PUBLICATION', 'ALTER SCHEMA', 'ALTER TABLE',
                   'ALTER TRIGGER', 'ALTER TYPE', 'CREATE MATERIALIZED VIEW', 'CREATE PUBLICATION', 'CREATE TABLE',
                   'CREATE TABLE AS', 'CREATE TRIGGER', 'REFRESH MATERIALIZED VIEW', 'SELECT INTO')
      execute function unstale.notice_ddl();
  end if;
  if not exists (select from pg_event_trigger where evtname = 'unstale_drop') then
    create event trigger unstale_drop on sql_drop
      when tag in ('ALTER PUBLICATION', 'ALTER TABLE', 'ALTER TYPE', 'DROP DOMAIN', 'DROP EXTENSION', 'DROP FUNCTION',
                   'DROP INDEX', 'DROP MATERIALIZED VIEW', 'DROP OWNED', 'DROP PUBLICATION', 'DROP SCHEMA', 'DROP TABLE',
                   'DROP TRIGGER', 'DROP TYPE')
      execute function unstale.notice_ddl();
  end if;
  if not exists (select from pg_event_trigger where evtname = 'unstale_rewrite') then
    create event trigger unstale_rewrite on table_rewrite
      execute function unstale.notice_ddl();
  end if;
end
$$;

-- Also for what a session with session_replication_role = replica does.
alter event trigger unstale_ddl enable always;
alter event trigger unstale_drop enable always;
alter event trigger unstale_rewrite enable always;
