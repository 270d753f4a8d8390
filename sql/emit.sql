-- The schema `unstale`, and unstale.emit: an application emits an event of its own, in its
-- transaction:
--   select unstale.emit('product.updated', '{"id": 7}');
-- EXECUTE on the function is the only privilege that a caller needs. The event goes to the outbox
-- if there is one, and to the log if wal_level is logical, so daemons of both modes receive it.
do $$
begin
  if to_regnamespace('unstale') is null then
    create schema unstale;
    comment on schema unstale is 'made by unstale';
  end if;
end
$$;

create or replace function unstale.emit(name text, payload jsonb default '{}') returns void
  language plpgsql volatile parallel unsafe security definer
  set search_path = pg_catalog, pg_temp
as $emit$
declare
  content text := coalesce(payload, '{}')::text;
begin
  if name is null or name = '' then
    raise exception 'unstale.emit: an event needs a name'
      using errcode = 'invalid_parameter_value', hint = 'call it as select unstale.emit(''product.updated'', ''{"id": 7}'')';
  end if;
  if octet_length(name) > 1024 then
    raise exception 'unstale.emit: the name of an event has at most 1024 bytes' using errcode = 'invalid_parameter_value';
  end if;
  if jsonb_typeof(coalesce(payload, '{}')) <> 'object' then
    raise exception 'unstale.emit: the payload of % is not a JSON object', name
      using errcode = 'invalid_parameter_value', hint = 'call it as select unstale.emit(''product.updated'', ''{"id": 7}'')';
  end if;
  if octet_length(content) > 1048576 then
    -- A daemon takes its fields for unknown, and deletes everything that its rules can name.
    content := null;
  end if;
  if current_setting('wal_level') = 'logical' then
    -- PostgreSQL does not convert the encoding of messages, so this one is always UTF-8.
    perform pg_logical_emit_message(true, 'unstale.event',
      convert_to(json_build_object('name', name, 'payload', content::json)::text, 'UTF8'));
  end if;
  if to_regclass('unstale.outbox') is not null then
    insert into unstale.outbox (op, new) values ('e', array[name, content]);
    if pg_sequence_last_value('unstale.bell'::regclass) = 2 then
      perform unstale.ring();
    end if;
  end if;
end
$emit$;

comment on function unstale.emit(text, jsonb) is 'made by unstale';

grant usage on schema unstale to public;

grant execute on function unstale.emit(text, jsonb) to public;
