// Renders chats with a template as Ollama does: Go's text/template with Ollama's function `json`, and the values that its
// template.go passes. `go run ollama_template.go TEMPLATE CHATS` prints each prompt with a zero byte after it.
package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type propertyType []string

func (t *propertyType) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*t = propertyType{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(t))
}

// in Ollama an ordered map with unexported fields, which templates read through ToMap
type propertiesMap struct{ values map[string]property }

func (p *propertiesMap) UnmarshalJSON(data []byte) error { return json.Unmarshal(data, &p.values) }
func (p *propertiesMap) ToMap() map[string]property       { return p.values }

type property struct {
	AnyOf       []property
	Type        propertyType
	Items       any
	Description string
	Enum        []any
	Properties  *propertiesMap
	Required    []string
}

type properties map[string]property

type parameters struct {
	Type       string
	Defs       any `json:"$defs"`
	Items      any
	Required   []string
	Properties properties
}

type function struct {
	Name        string
	Description string
	Parameters  parameters
}

type tool struct {
	Type     string
	Function function
}

type arguments map[string]any

func (a arguments) String() string {
	text, _ := json.Marshal(map[string]any(a))
	return string(text)
}

type call struct {
	Function struct {
		Index     int
		Name      string
		Arguments arguments
	}
}

type message struct {
	Role      string
	Content   string
	Thinking  string
	ToolCalls []call
}

type chat struct {
	System     string
	Messages   []*message
	Tools      []tool
	Think      bool
	IsThinkSet bool
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	source, err := os.ReadFile(os.Args[1])
	must(err)
	data, err := os.ReadFile(os.Args[2])
	must(err)
	var chats []chat
	must(json.Unmarshal(data, &chats))
	functions := template.FuncMap{"json": func(value any) string {
		text, _ := json.Marshal(value)
		return string(text)
	}}
	parsed := template.Must(template.New("").Option("missingkey=zero").Funcs(functions).Parse(string(source)))
	for _, one := range chats {
		must(parsed.Execute(os.Stdout, map[string]any{
			"System": one.System, "Messages": one.Messages, "Tools": one.Tools, "Response": "",
			"Think": one.Think, "ThinkLevel": "", "IsThinkSet": one.IsThinkSet,
		}))
		os.Stdout.Write([]byte{0})
	}
}
