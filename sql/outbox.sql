-- The outbox: what writers' triggers write to and the daemon empties. The triggers are made for the tables of the rules,
-- by `unstale setup`. Everything here is made where it is missing, and else left alone; nothing locks a table.
do $$
begin
  if to_regnamespace('unstale') is null then
    create schema unstale;
    comment on schema unstale is 'made by unstale';
  end if;

  -- One row for each change, in the order in which a transaction made them. It is short when all is well and is written
  -- and emptied all the time: so it is vacuumed early, by count, and keeps its pages. To give them back, a vacuum would
  -- have to lock writers out.
  if to_regclass('unstale.outbox') is null then
    create table unstale.outbox (
      -- In this order: a transaction has its id before it draws a number. So what was drawn before another transaction
      -- began to write belongs to an older one.
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
    -- Not compressed: how large an entry is to send is then known without reading it.
    alter table unstale.outbox alter column old set storage external, alter column new set storage external;
    comment on column unstale.outbox.op is
      'i insert, u update, d delete, t truncate, e event (new: its name and payload), r something, nobody knows what';
    comment on column unstale.outbox.old is 'the row before: the values of the columns that unstale.shape names';
  end if;

  -- What the values of an entry are. Rows stay: an entry may be older than what its function writes now.
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

  -- Who empties it, one row; the dataset in Redis into which that goes; and what tells the rules of each table, by which that
  -- is done, from any others.
  if to_regclass('unstale.consumer') is null then
    create table unstale.consumer (slot text primary key, dataset text, rules jsonb);
    comment on table unstale.consumer is 'made by unstale';
  end if;

  -- How many batches Redis had counted when entries were last taken out. A sequence, because it is set with each claim.
  if to_regclass('unstale.counted') is null then
    create sequence unstale.counted minvalue 0 start 0;
    comment on sequence unstale.counted is 'made by unstale';
  end if;

  -- The number of batches, and the dataset that counted them; from now on nobody confirms one that went into another dataset
  -- than this or was made by other rules. What a table's new rules missed is not known.
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

  -- Redis had counted so many batches when everything was in force that this transaction takes out. It is committed at
  -- once after this; others wait until then.
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

  -- 2: the daemon sleeps and wants to be rung. 1: it does not. A sequence, because it changes at once and for all.
  if to_regclass('unstale.bell') is null then
    create sequence unstale.bell;
    comment on sequence unstale.bell is 'made by unstale';
  end if;

  -- Rings once for each time the daemon went to sleep. A transaction that notifies cannot be prepared, and fails where
  -- others let the queue fill: then the daemon finds out by itself, when it looks the next time.
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
end
$$;
