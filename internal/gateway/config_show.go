package gateway

import (
	"fmt"
	"io"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// WriteYAML writes every setting in the form of a configuration file, secrets masked. where, which may be nil, names the
// place each value comes from; it becomes a comment.
func (c Config) WriteYAML(w io.Writer, where func(name string) string) error {
	top := &yaml.Node{Kind: yaml.MappingNode}
	sections := map[string]*yaml.Node{"": top}
	for _, s := range settingsOf(&c) {
		section, key, ok := cutLast(s.Name, ".")
		if !ok {
			section, key = "", s.Name
		}
		into := sections[section]
		if into == nil {
			into = &yaml.Node{Kind: yaml.MappingNode}
			sections[section] = into
			top.Content = append(top.Content, textNode(section), into)
		}
		value := s.node()
		if where != nil && where(s.Name) != "" {
			value.LineComment = "# " + where(s.Name)
		}
		into.Content = append(into.Content, textNode(key), value)
	}
	list := func(setting string, value *yaml.Node) {
		if len(value.Content) == 0 {
			return
		}
		section, key, _ := cutLast(setting, ".")
		name := textNode(key)
		if where != nil && where(setting) != "" {
			name.HeadComment = "# " + where(setting)
		}
		sections[section].Content = append(sections[section].Content, name, value)
	}
	list(sinksName, listNode(c.Events.Sinks))
	list(keysName, listNode(c.API.Keys))
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	if err := encoder.Encode(top); err != nil {
		return fmt.Errorf("writing settings: %w", err)
	}
	return encoder.Close()
}

func (s setting) node() *yaml.Node {
	v := s.value()
	if s.IsList() {
		list := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for i := range v.Len() {
			list.Content = append(list.Content, textNode(v.Index(i).String()))
		}
		return list
	}
	text := fmt.Sprint(v)
	if s.Secret() && text != "" {
		if text = maskURL(text); s.flag.Tag.Get("secret") == "all" {
			text = mask
		}
	}
	if v.Type() == typeLevel {
		text = strings.ToLower(text)
	}
	node := textNode(text)
	if v.Kind() == reflect.Bool {
		node.Tag = "!!bool"
	} else if v.CanInt() && v.Type() != typeDuration && v.Type() != typeLevel && text != "auto" {
		node.Tag = "!!int"
	}
	return node
}

func textNode(text string) *yaml.Node {
	node := &yaml.Node{}
	node.SetString(text)
	return node
}
