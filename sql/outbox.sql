-- The outbox: triggers write changes to it, and the daemon removes them. `unstale setup` creates
-- the triggers on the tables of the rules. This script creates what is missing, leaves the rest
-- alone, and locks no table of an application.
do $$
declare
  emit record;
begin
  if to_regnamespace('unstale') is null then
    create schema unstale;
    comment on schema unstale is 'made by unstale';
  end if;

  -- One row for each change, in the order in which a transaction made them. The table is short and
  -- changes all the time, so autovacuum starts early, by row count. It does not truncate the table,
  -- because that would lock out writers.
  if to_regclass('unstale.outbox') is null then
    create table unstale.outbox (
      -- The order of the defaults matters: a transaction gets its xid before its first id. So an id
      -- that was drawn before another transaction began to write belongs to an older transaction.
      xid xid8 not null default pg_current_xact_id(),
      id bigint generated always as identity primary key,
      at timestamptz not null default clock_timestamp(),
      op "char" not null,
      shape integer,
      old text[],
      new text[]
    ) with (
      autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
      autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000, vacuum_truncate = off,
      toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 5000,
      toast.autovacuum_vacuum_cost_delay = 0, toast.vacuum_truncate = off
    );
    comment on table unstale.outbox is 'made by unstale';
    -- Without compression, the stored size of an entry is the size to send.
    alter table unstale.outbox alter column old set storage external, alter column new set storage external;
    comment on column unstale.outbox.op is
      'i insert, u update, d delete, t truncate, e event (new: its name and payload), r unknown change, '
      'h hold by a daemon (new: until the entries up to this id are gone)';
    comment on column unstale.outbox.old is 'the old row: the values of the columns listed in unstale.shape';
  end if;

  -- The columns and types of the values in an entry. Rows are kept, because an entry may be older
  -- than the current version of the function that wrote it.
  if to_regclass('unstale.shape') is null then
    create table unstale.shape (
      id integer primary key,
      schema_name text not null,
      table_name text not null,
      columns text[] not null,
      types oid[] not null
    );
    comment on table unstale.shape is 'made by unstale';
  end if;

  -- The consumer of the outbox, one row: its slot name, the Redis dataset that it applies changes
  -- to, and a fingerprint of the rules for each table.
  if to_regclass('unstale.consumer') is null then
    create table unstale.consumer (slot text primary key, dataset text, rules jsonb);
    comment on table unstale.consumer is 'made by unstale';
  end if;

  -- The number of batches that Redis had counted when entries were last removed. A sequence,
  -- because every claim sets it.
  if to_regclass('unstale.counted') is null then
    create sequence unstale.counted minvalue 0 start 0;
    comment on sequence unstale.counted is 'made by unstale';
  end if;

  -- Registers a daemon's dataset and rules, and returns the number of batches and the dataset that
  -- counted them. From then on, unstale.confirm fails for any other dataset or rules. A table whose
  -- rules are new gets an entry for an unknown change, because earlier changes were not handled by
  -- these rules.
  if to_regprocedure('unstale.take_over(text, text, jsonb)') is null then
    create function unstale.take_over(consumer text, dataset text, rules jsonb, out counted bigint, out counted_by text)
      language plpgsql volatile parallel unsafe
      set search_path = pg_catalog, pg_temp
    as $take_over$
    begin
      perform pg_advisory_xact_lock(1970172788, 5);
      insert into unstale.outbox (op, shape)
        select 'r', min(s.id)
          from unstale.consumer c
          cross join jsonb_each_text(take_over.rules) r
          join unstale.shape s on s.schema_name || '.' || s.table_name = r.key
         where c.slot = take_over.consumer and c.rules is not null and c.rules ->> r.key is distinct from r.value
         group by r.key;
      counted_by := (select c.dataset from unstale.consumer c where c.slot = take_over.consumer);
      update unstale.consumer c set dataset = take_over.dataset, rules = take_over.rules
        where c.slot = take_over.consumer
          and (c.dataset is distinct from take_over.dataset or c.rules is distinct from take_over.rules);
      counted := (select case when is_called then last_value else 0 end from unstale.counted);
    end
    $take_over$;
    comment on function unstale.take_over(text, text, jsonb) is 'made by unstale';
  end if;

  -- Confirms that Redis had counted this many batches when the entries that this transaction
  -- removes were applied. Commit right after it: other calls wait until then.
  if to_regprocedure('unstale.confirm(text, jsonb, bigint)') is null then
    create function unstale.confirm(dataset text, rules jsonb, batches bigint) returns void
      language plpgsql volatile parallel unsafe
      set search_path = pg_catalog, pg_temp
    as $confirm$
    begin
      perform pg_advisory_xact_lock(1970172788, 5);
      if not exists (select from unstale.consumer c where c.dataset = confirm.dataset and c.rules = confirm.rules) then
        raise exception 'a daemon with another Redis or other rules has taken over'
          using errcode = 'object_not_in_prerequisite_state';
      end if;
      if batches > (select case when is_called then last_value else 0 end from unstale.counted) then
        perform setval('unstale.counted'::regclass, batches);
      end if;
    end
    $confirm$;
    comment on function unstale.confirm(text, jsonb, bigint) is 'made by unstale';
  end if;

  -- The wakeup flag. 2: the daemon is idle and waits for a NOTIFY. 1: it does not. A sequence,
  -- because its changes are visible at once, outside of transactions.
  if to_regclass('unstale.bell') is null then
    create sequence unstale.bell;
    comment on sequence unstale.bell is 'made by unstale';
  end if;

  -- Wakes the daemon, once for each time it went idle. A transaction with a NOTIFY cannot be
  -- prepared, and it fails when the notification queue is full. In either case nothing is sent, and
  -- the daemon sees the entry at its next poll.
  if to_regprocedure('unstale.ring()') is null then
    create function unstale.ring() returns void
      language plpgsql volatile parallel unsafe
      set search_path = pg_catalog, pg_temp
    as $ring$
    begin
      if current_setting('max_prepared_transactions') = '0' and pg_notification_queue_usage() < 0.5 then
        perform setval('unstale.bell'::regclass, 1);
        perform pg_notify('unstale', '');
      end if;
    end
    $ring$;
    comment on function unstale.ring() is 'made by unstale';
    revoke all on function unstale.ring() from public;
  end if;

  -- unstale.emit runs as its owner, which may be another role than the one that runs this script.
  for emit in
    select pg_get_userbyid(p.proowner) as owner from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where n.nspname = 'unstale' and p.proname = 'emit' and p.prosecdef
  loop
    execute format('grant insert on unstale.outbox to %I', emit.owner);
    execute format('grant select on unstale.bell to %I', emit.owner);
    execute format('grant execute on function unstale.ring() to %I', emit.owner);
  end loop;
end
$$;
