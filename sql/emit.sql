-- The schema `unstale`, and unstale.emit for slot mode: an application emits an event of its own,
-- in its transaction:
--   select unstale.emit('product.updated', '{"id": 7}');
-- EXECUTE on the function is the only privilege that a caller needs.
-- In outbox mode, sql/outbox_emit.sql installs another function of this name.
do $$
begin
  if to_regnamespace('unstale') is null then
    create schema unstale;
    comment on schema unstale is 'made by unstale';
  end if;
  -- Replacing a function locks it and writes to the catalog, so an up-to-date one is left alone.
  if not exists (select from pg_proc where oid = to_regprocedure('unstale.emit(text, jsonb)')
                    and prosrc like '%pg_logical_emit_message%') then
    create or replace function unstale.emit(name text, payload jsonb default '{}') returns void
      language plpgsql volatile parallel unsafe
      set search_path = pg_catalog
    as $emit$
    begin
      if name is null or name = '' then
        raise exception 'unstale.emit: an event needs a name'
          using errcode = 'invalid_parameter_value', hint = 'call it as select unstale.emit(''product.updated'', ''{"id": 7}'')';
      end if;
      if jsonb_typeof(coalesce(payload, '{}')) <> 'object' then
        raise exception 'unstale.emit: the payload of % is not a JSON object', name
          using errcode = 'invalid_parameter_value', hint = 'call it as select unstale.emit(''product.updated'', ''{"id": 7}'')';
      end if;
      -- PostgreSQL does not convert the encoding of messages, so this one is always UTF-8.
      perform pg_logical_emit_message(true, 'unstale.event',
        convert_to(json_build_object('name', name, 'payload', coalesce(payload, '{}'))::text, 'UTF8'));
    end
    $emit$;
    comment on function unstale.emit(text, jsonb) is 'made by unstale';
  end if;
  grant usage on schema unstale to public;
  grant execute on function unstale.emit(text, jsonb) to public;
end
$$;
