package org

// text is what a problem says: {0} is the value, {1} and up further facts.
type text struct{ en, mendEN, zh, mendZH string }

// catalogue holds the words of every problem; it is never written to.
var catalogue = map[string]text{
	// The file.
	"file_too_large":   {"the file is larger than {1} MiB", "split it or remove pictures and unused sheets", "文件超过 {1} MiB", "请拆分文件，或删除图片和无用的工作表"},
	"file_unreadable":  {"the file cannot be read: {1}", "open it in the spreadsheet program and save it again as .xlsx or as CSV UTF-8", "文件无法读取：{1}", "请用表格软件打开后重新另存为 .xlsx 或“CSV UTF-8”"},
	"file_empty":       {"the file is empty", "take the template and fill it in", "文件是空的", "请使用模板填写"},
	"old_excel":        {"this is an old .xls or a password-protected workbook", "save it as .xlsx without a password", "这是旧版 .xls 或带密码的工作簿", "请另存为不带密码的 .xlsx"},
	"not_utf8":         {"the text is not UTF-8", "save the file as \"CSV UTF-8\", or use .xlsx", "文字编码不是 UTF-8（可能是 GBK）", "请另存为“CSV UTF-8（逗号分隔）”，或改用 .xlsx"},
	"csv_syntax":       {"broken CSV: {1}", "check the quotation marks in and before this row", "CSV 格式错误：{1}", "请检查本行及之前的引号"},
	"no_sheet":         {"neither a units nor a people sheet was found", "name the sheets \"units\" and \"people\" (部门, 人员) and keep the header row of the template", "没有找到“部门”或“人员”工作表", "请将工作表命名为“部门”和“人员”，并保留模板的表头"},
	"sheet_twice":      {"there is a second {1} sheet", "keep one of them", "“{1}”工作表出现了两次", "请只保留一个"},
	"missing_column":   {"the column {1} is missing", "add it to the header row", "缺少“{2}”列", "请在表头中加上该列"},
	"duplicate_column": {"two columns mean {1}", "remove one of them", "有两列都表示“{2}”", "请删除其中一列"},
	"too_many_rows":    {"more than {1} rows", "import fewer rows", "超过 {1} 行", "请减少行数"},
	"too_many_columns": {"more than {1} columns", "remove the columns that are not needed", "超过 {1} 列", "请删除不需要的列"},
	"value_too_long":   {"longer than {1} characters", "shorten it", "超过 {1} 个字符", "请缩短"},
	"more":             {"{1} further problems are not shown", "mend these first", "另有 {1} 个问题未显示", "请先修改以上问题"},

	// One cell or row.
	"required":              {"must not be empty", "fill it in, or delete the row", "不能为空", "请填写，或删除该行"},
	"bad_id":                {"may have letters, digits, dot, hyphen and underscore only, at most {1}, and begins with a letter or digit", "remove other characters", "只能包含字母、数字、点、连字符和下划线，最多 {1} 位，且以字母或数字开头", "请删除其他字符"},
	"name_length":           {"has {1} characters, at most {2} are allowed", "shorten it", "有 {1} 个字符，最多允许 {2} 个", "请缩短"},
	"bad_text":              {"has a line break or an invisible control character", "type it again", "含有换行或不可见的控制字符", "请重新输入"},
	"bad_number":            {"is not a whole number between 0 and {1}", "write digits only", "不是 0 到 {1} 之间的整数", "请只填写数字"},
	"bad_flag":              {"is neither yes nor no", "write yes or no (是, 否)", "不是“是”或“否”", "请填写“是”或“否”"},
	"bad_mobile":            {"is not a mobile number", "write 11 digits (13800000000), or + and country code", "不是有效的手机号", "请填写 11 位手机号，或以 + 和国家码开头的号码"},
	"number_rounded":        {"was shortened by the spreadsheet program", "format the column as text and type the number again", "被表格软件转成了科学计数法", "请把该列设为“文本”格式后重新输入"},
	"bad_email":             {"is not an e-mail address", "write it as name@example.com", "不是有效的邮箱地址", "请按 name@example.com 填写"},
	"bad_date":              {"is not a date", "write it as 2024-03-01", "不是有效日期", "请按 2024-03-01 填写"},
	"bad_post":              {"is not a post", "write unit:title, then :main or :deputy if it applies; put ; between posts", "任职格式不对", "请按“部门编号:职务”填写，可加“:主”或“:副职”，多个任职用分号隔开"},
	"bad_leader":            {"is neither main nor deputy", "write main, deputy or nothing (正职, 副职)", "不是“正职”或“副职”", "请填写“正职”、“副职”或留空"},
	"bad_status":            {"is not a status", "write active, suspended or left (在职, 停用, 离职), or nothing", "不是有效的状态", "请填写“在职”、“停用”、“离职”或留空"},
	"title_without_unit":    {"a title without a unit", "fill in the unit of the post", "有职务但没有部门", "请填写部门"},
	"date_order":            {"the day of leaving is before the day of hiring ({1})", "correct one of the two dates", "离职日期早于入职日期（{1}）", "请修改其中一个日期"},
	"left_without_date":     {"has left, but the day of leaving is missing", "fill in the date of leaving", "状态为离职，但没有离职日期", "请填写离职日期"},
	"active_with_left_date": {"is not marked as left, but the day of leaving ({1}) has passed", "remove the date, or write left", "状态不是离职，但离职日期（{1}）已过", "请删除离职日期，或将状态改为“离职”"},

	// The whole.
	"duplicate_id":         {"the unit id is used already in row {1}", "give each unit its own id", "部门编号已在第 {1} 行使用", "请为每个部门使用不同的编号"},
	"duplicate_person":     {"the job number is used already in row {1}", "keep one row for each person; write further posts into the posts column", "工号已在第 {1} 行使用", "每人只保留一行，其他任职写入“兼职”列"},
	"id_spelling":          {"differs from {1} in upper and lower case only", "write it as {1}", "与 {1} 仅大小写不同", "请写作 {1}"},
	"duplicate_code":       {"the code belongs to unit {1} too", "give each unit its own code", "该代码与部门 {1} 重复", "请使用不同的代码"},
	"code_is_id":           {"the code is the id of another unit", "choose another code", "该代码是另一个部门的编号", "请换一个代码"},
	"duplicate_name":       {"unit {1} has the same name under the same parent", "rename one of them, e.g. by adding the place", "同一上级下的部门 {1} 已使用该名称", "请修改其中一个名称，例如加上地点"},
	"unknown_parent":       {"there is no such unit", "correct the id, or add a row for the parent unit", "没有这个上级部门", "请修改编号，或为上级部门添加一行"},
	"unit_cycle":           {"the unit is placed under itself: {1}", "give one of these units a parent outside the circle", "部门的上级形成了循环：{1}", "请为其中一个部门指定循环之外的上级"},
	"too_deep":             {"the unit is more than {1} levels deep", "flatten the tree", "部门层级超过 {1} 级", "请减少层级"},
	"unknown_unit_manager": {"there is nobody with this job number", "correct the job number, or leave the cell empty while the place is vacant", "没有这个工号的人员", "请修改工号；职位空缺时请留空"},
	"duplicate_mobile":     {"the mobile number belongs to {1} too", "correct one of them; a number belongs to one person", "手机号与 {1} 重复", "请修改其中一个，每个手机号只能属于一人"},
	"duplicate_email":      {"the e-mail address belongs to {1} too", "correct one of them; an address belongs to one person", "邮箱与 {1} 重复", "请修改其中一个，每个邮箱只能属于一人"},
	"unknown_unit":         {"there is no such unit", "correct the unit's id, or add the unit", "没有这个部门", "请修改部门编号，或添加该部门"},
	"duplicate_post":       {"two posts in the same unit", "join them into one title", "在同一部门有两个任职", "请合并为一个职务"},
	"two_main_posts":       {"has more than one main post", "mark one post as main", "有多个主任职", "请只保留一个主任职"},
	"too_many_posts":       {"has more than {1} posts", "remove some", "任职超过 {1} 个", "请减少任职"},
	"too_many_managers":    {"has more than {1} managers", "remove some", "负责人超过 {1} 个", "请减少负责人"},
	"unknown_manager":      {"there is nobody with this job number", "correct the job number, or leave the cell empty", "没有这个工号的人员", "请修改工号，或留空"},
	"own_manager":          {"is the own line manager", "name another person, or leave the cell empty", "直属上级是本人", "请填写其他人，或留空"},
	"line_cycle":           {"the line of managers is a circle: {1}", "give one of these people another line manager or none", "直属上级形成了循环：{1}", "请为其中一人更换或清空直属上级"},
	"unit_in_use":          {"the unit would be removed, but {1} people outside the file still work in it", "give these people another unit first: {2}", "部门将被删除，但仍有 {1} 名不在文件中的人员在其中任职", "请先将这些人员调到其他部门：{2}"},
	"too_many_leave":       {"{1} of {2} people would leave, more than {3} %", "check that the file is whole; if it is right, force the import", "将有 {1} 人（共 {2} 人）离职，超过 {3}%", "请检查文件是否完整；确认无误后可强制导入"},
	"too_many_removed":     {"{1} of {2} units would be removed, more than {3} %", "check that the file is whole; if it is right, force the import", "将删除 {1} 个部门（共 {2} 个），超过 {3}%", "请检查文件是否完整；确认无误后可强制导入"},

	// Remarks; they stop nothing.
	"unknown_column":    {"the column is not known and was left out", "rename it if it was meant", "未识别的列，已忽略", "如需导入请修改表头"},
	"vacant":            {"unit {1} has no manager", "", "部门“{1}”没有负责人", ""},
	"manager_left":      {"the manager {1} of {2} has left or will leave", "name a successor", "{2} 的负责人 {1} 已离职或将离职", "请指定接任者"},
	"line_manager_left": {"the line manager {1} of {2} has left or will leave", "name another line manager", "{2} 的直属上级 {1} 已离职或将离职", "请更换直属上级"},
	"no_post":           {"{1} works in no unit", "", "{1} 没有所属部门", ""},
	"leaves_later":      {"{1} leaves on {2}", "", "{1} 将于 {2} 离职", ""},
	"starts_later":      {"{1} begins on {2}", "", "{1} 将于 {2} 入职", ""},
}
