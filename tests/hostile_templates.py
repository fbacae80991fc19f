"""Chat templates that loop, grow, recurse or are broken, and the bound or the error that ends each of them."""

QUICK = {
    "lipsum": "{{ lipsum(100000) }}",
    "mul": "{{ 'x' * 10**10 }}",
    "mul2": "{{ ('x' * 1000000) * 1000000 }}",
    "mullist": "{{ [1] * 10**9 }}",
    "mulrev": "{{ 10**9 * 'x' }}",
    "mulconst": "{{ 'x' * 10000000000 }}",
    "powloop": "{% set ns = namespace(x=3) %}{% for i in range(64) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "percent": "{{ '%999999999d' % 1 }}",
    "star": "{{ '%*d' % (999999999, 1) }}",
    "formatf": "{{ '%999999999d'|format(1) }}",
    "format": "{{ '{:999999999}'.format(1) }}",
    "formatnest": "{{ '{:{}}'.format(1, 999999999) }}",
    "formatmap": "{{ '{x:999999999}'.format_map({'x': 1}) }}",
    "formatrep": "{{ ('{0}' * 50000).format('x' * 50000) }}",
    "center": "{{ 'x'|center(999999999) }}",
    "ljust": "{{ 'x'.ljust(999999999) }}",
    "zfill": "{{ 'x'.zfill(999999999) }}",
    "tabs": "{{ '\t'.expandtabs(999999999) }}",
    "tabs2": "{{ ('\t'*10000).expandtabs(100000) }}",
    "replace": (
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}{{ "
        "ns.x|length }}"
    ),
    "replacef": (
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x|replace('a', 'aa') %}{% endfor %}{{ "
        "ns.x|length }}"
    ),
    "double": "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
    "doubleadd": (
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}"
    ),
    "laughs": "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "laughsd": (
        "{% set ns = namespace(x={}) %}{% for i in range(64) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x }}"
    ),
    "laughst": "{% set ns = namespace(x=(1,)) %}{% for i in range(64) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "laughsdict": (
        "{% set ns = namespace(x=1) %}{% for i in range(64) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}"
    ),
    "laughsviews": (
        "{% set ns = namespace(x={'a':1}) %}{% for i in range(64) %}{% set ns.x = {'a': ns.x.items(), 'b': ns.x.items()"
        "} %}{% endfor %}{{ ns.x }}"
    ),
    "laughskw": (
        "{% macro m(n) %}{% if n %}{{ m(n-1, a=kwargs, b=kwargs) }}{% else %}{{ kwargs }}{% endif %}{% endmacro %}{{ m("
        "64, a=1, b=2) }}"
    ),
    "laughsva": (
        "{% macro m(n) %}{% if n %}{{ m(n-1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}{% endmacro %}{{ m(6"
        "4, 1, 2) }}"
    ),
    "laughsbatch": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% for y in ([ns.x]|batch(2, ns.x)) %}{% set ns.x = y %"
        "}{% endfor %}{% endfor %}{{ ns.x }}"
    ),
    "laughszip": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x]|list + [ns.x]|list %}{% endfor %}{{ ns.x }}"
    ),
    "laughscmp": (
        "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y"
        ", ns.y] %}{% endfor %}{{ ns.x == ns.y }}"
    ),
    "macrorec": "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "macrobuf": "{% macro m(n) %}{% if n %}{% set y = m(n-1) %}{{ y }}{{ y }}{% else %}x{% endif %}{% endmacro %}{{ m(100) }}",
    "looprec": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "div": "{{ 1 / 0 }}",
    "badattr": "{{ messages[0].foo.bar }}",
    "typeerr": "{{ 1 + 'x' }}",
    "raise": "{{ raise_exception('x' * 100000) }}",
    "round": "{{ 1.5|round(999999999, 'ceil') }}",
    "int36": "{{ ('z' * 900000)|int(0, 32) }}",
    "indent": "{{ ('\n' * 50000)|indent('x' * 50000) }}",
    "indent2": "{{ ('\n' * 50000)|indent(99999) }}",
    "join": "{{ (['x'] * 50000)|join('y' * 50000) }}",
    "joinm": "{{ ('y' * 50000).join(['x'] * 50000) }}",
    "translate": "{{ ('a' * 50000).translate({97: 'x' * 50000}) }}",
    "striptags": "{{ ('<!--' * 200000)|striptags }}",
    "striptags2": "{{ (('<!-->' * 100000)|e).striptags() }}",
    "urlize": "{{ ('(' * 400000 ~ ')' * 400000)|urlize }}",
    "punycode": "{{ ('ü' * 500000).encode('punycode') }}",
    "wordwrap": "{{ ('x ' * 400000)|wordwrap(1, wrapstring='y' * 100000) }}",
    "modbig": "{{ (10**2400 ) % 7 }}{{ 7 ** 9999 }}",
    "escape": "{{ ('<' * 900000)|e|e|e|e|length }}",
    "mulmarkup": "{{ ('x'|e) * 10**9 }}",
    "ljustmarkup": "{{ ('x'|e).ljust(10**9) }}",
    "tobytes": "{{ (1).to_bytes(999999999, 'big') }}",
    "unclosed": "{% for x in y %}",
    "nofilter": "{{ 1|nosuch }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as x %}",
    "escape2": "{{ ''.__class__.__mro__ }}",
    "selfb": "{% block a %}{{ self.a() }}{% endblock %}",
    "filtermap": "{{ range(100000)|map('center', 99999)|list|length }}",
    "xmlattr": "{{ {'a': '<' * 900000}|xmlattr|length }}",
    "slice": "{{ range(100)|slice(999999999)|list }}",
    "batch": "{{ [1]|batch(999999999, 'x')|list }}",
    "truncate": "{{ 'x'|truncate(99999999999) }}",
    "fill": "{{ [1]|batch(100000, 'x' * 900000)|list }}",
    "fromkeys": "{{ dict.fromkeys(range(100000), 'x' * 900000) }}",
    "blocks": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "brackets": "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "ifs": "{% if a %}" * 120 + "{% endif %}" * 120,
    "source": "x" * 70_000,
}

# these take seconds until they reach a bound
SLOW = {
    "loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "loops-print": "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
    "loop-filter": "{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
    "doublelist": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}"
    ),
    "macrofib": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}x{% endmacro %}{{ m(100) }}",
    "loopbuf": "{% set x %}{% for i in range(100000) %}{{ messages }}{% endfor %}{% endset %}{{ x|length }}",
    "looptop": "{% for i in range(100000) %}{{ messages }}{{ messages }}{{ messages }}{{ messages }}{% endfor %}",
    "bigtop": "{% set b = 'x' * 900000 %}{% for i in range(100000) %}{{ b }}{% endfor %}",
    "bigtop2": "{% set b = 'x' * 900000 %}{% for i in range(100000) %}{{ b + i|string }}{% endfor %}",
    "compare": (
        "{% set a = 'x' * 500000 + 'y' %}{% set b = 'x' * 500000 + 'z' %}{% for i in range(100000) %}{% for j in range("
        "100000) %}{% if a == b %}{% endif %}{% endfor %}{% endfor %}"
    ),
    "in": "{% set a = 'x' * 900000 %}{% for i in range(100000) %}{% if 'y' in a %}{% endif %}{% endfor %}",
    "joingen": "{{ range(100000)|map('string')|join('y' * 50000) }}",
    "joinm2": "{{ ('y' * 50000).join(range(100000)|map('string')) }}",
    "tojson": "{{ (range(100000)|list)|tojson(indent=99999) }}",
    "tojson2": "{{ (range(100000)|list)|tojson(separators=('x' * 50000, ':')) }}",
    "sum": "{{ ([[1]] * 300000)|sum(start=[]) }}",
    "sort": "{{ ('ab' * 500000)|sort|length }}",
    "unique": "{{ ('ab' * 500000)|unique|list }}",
    "groupby": "{{ (range(100000)|list)|groupby('x')|list|length }}",
    "cycle": (
        "{% set c = cycler(*range(100000)) %}{% for i in range(100000) %}{% for j in range(100000) %}{{ c.next() }}{% e"
        "ndfor %}{% endfor %}"
    ),
    "gen": "{% for i in range(100000) %}{% generation %}{{ messages }}{% endgeneration %}{% endfor %}",
    "strftime": "{{ strftime_now('%Y' * 100000) }}",
    "callgen": "{% for i in range(100000) %}{{ messages|tojson }}{% endfor %}",
    "changed": "{% for i in range(100000) %}{{ loop.changed(messages, messages) }}{{ loop.length }}{% endfor %}",
    "sums": "{{ " + "+".join(["messages"] * 4000) + " }}",
    "joins": "{{ " + "~".join(["('x' * 1000000)"] * 3000) + " }}",
}
